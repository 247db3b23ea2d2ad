"""Queues that dead processes left: taken over by a server, or finished by an operator."""
