"""`taskq bench`: what this machine makes of taskq, beside the floors that nothing can beat.

A figure alone says little, a ratio in one run on one machine says much.  So each round measures the
floor (an HTTP server that stores nothing, a commit that nobody waits beside) and taskq one after the
other, and there are several rounds.  Every measure runs in a process and on a database of its own,
which are gone afterwards; durability stays as in production.  A run whose tasks are not all stored,
or not all Ok, is no measurement: it fails.

    rounds ──► groups of measures ──► processes ──► child: one job (service, floor, load, drain, …)
       └─► figures: medians, ratios, targets, verdicts
"""

GROUP_NAMES = ("http", "submit", "sql", "drain", "wake", "steady", "mail", "start", "million")
"""The groups of measures; here so that the command line need not load them to know their names."""
