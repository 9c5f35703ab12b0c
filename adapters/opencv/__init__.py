"""Video clips by OpenCV, which brings FFmpeg's decoders, in a process of its own with limits on all it does."""
