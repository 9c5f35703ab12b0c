"""A WSGI server on waitress that can hold hundreds of slow streams with few threads.

Waitress lends a thread to every request until its response is complete, cannot say when a client has gone, answers
protocol errors as plain text and has no orderly end. The classes here subclass it to add these, and nothing else.
"""
