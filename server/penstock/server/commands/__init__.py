"""The commands of ``penstock``, one module each; ``penstock.server.cli`` puts them together.

A command module has ``add(commands)``, which declares its arguments, and ``run(arguments)``, which
does the work and returns the exit status. Declaring imports nothing heavy: numpy, the client and
the server are imported by the command that needs them, so that every command but ``serve`` works
with the base installation.

``remote`` alone imports ``penstock.client``: the one exception to "client and server never import
each other".
"""
