"""The HTTP side: routes, problem documents and health; JSON in, JSON out.

Nothing here decides anything about tasks: `api` turns requests into calls of the intake and the
store, `app` makes the routes, the errors and the server.
"""
