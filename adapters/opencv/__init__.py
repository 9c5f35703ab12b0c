"""Decoding of video clips by OpenCV, which includes FFmpeg, in a child process with resource limits."""
