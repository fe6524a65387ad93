"""Clients, server and workers in one process, from one seed, in virtual time, with everything that goes wrong.

    world        the seed, the clock, the queue of events, the trace
    profile      what a seed does and suffers (swarm)
    disk         SQLite's log as a simulation, and the writer that commits to it
    network      connections: bytes that are torn, late, stalled or cut; the server's end of each
    server       the real dispatcher, namespaces and engine as a process that can be killed
    peer, client, worker    the other ends, over the real `zapwire.Connection`
    tokens       where workers leave the tokens of what they detach, and who finishes it
    plays, replayer, player    workflows as pure functions of their histories, who runs them, who starts them
    promises     those of docs/design.md, a file each
    checkers     tell them what enters and leaves the server
    stories      what histories have to say, and what they tell of one another
    simulation   safety phase, liveness phase, one more loss of power
    planted      mistakes to make on purpose, one at least for each checker

`python -m tests.sim --seeds 1000`, and `--seed N --trace` for a closer look at one. The same seed does the same as long
as the code does; any change of what the server writes or draws shifts all seeds. Half of the seeds have two namespaces,
each with a disk of its own. What is not here yet: queries, cron schedules of
workflows, streamed output, sessions, HTTP.
"""
