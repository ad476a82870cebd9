"""Kinds of work: the registry with its one extension point, and the built-in kinds over it."""
