"""`zaptasks demo`: an online shop's night, with a server, two workers and a client as processes of their own.

shop      the handlers, as an application would write them
worker    the process that serves them
journal   what the workers' handlers say about themselves, for the report
children  the processes
night     the jobs of the client, and what is expected of them
board     progress while it runs, and the tables at the end
"""
