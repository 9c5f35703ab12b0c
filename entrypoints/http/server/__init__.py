"""A WSGI server on waitress that can hold hundreds of slow streams with few threads.

Waitress blocks a thread for every request until its response is complete, reports no disconnects, sends protocol errors
as plain text and has no graceful shutdown. The classes here subclass it to add these four, and nothing else.
"""
