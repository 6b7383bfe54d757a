"""The server: parse, call the engine, encode."""
