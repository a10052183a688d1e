"""The dashboard: a web page that shows running daemons, any of their batches, and what is in their data.

    browser --GET--> guard (Host, user or token) --> app --> watch: status of each daemon, and its history
                                                         --> batches: single batches, by a cursor of their own
                                                         --> index: where samples come from, in a process of its own

`prefetchd dashboard` runs it. It is a client like `top`: it asks a daemon's socket, in a process of its own, and
changes nothing. Needs the extra `dashboard`.
"""
