"""Realtime: a persona hears the user, thinks briefly, and answers."""
