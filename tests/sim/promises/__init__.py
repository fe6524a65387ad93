"""The promises, a file each. They look at what enters and leaves the server, and at what it has in the end.

Who was promised something tells the checker; the checker believes nobody else. `World.fail` takes the first violation.
"""
