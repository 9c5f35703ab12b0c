"""Ways in: parse, build, execute. Three doors that do not know each other, one settings reader, one container."""
