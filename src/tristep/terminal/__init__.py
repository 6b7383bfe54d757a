"""Talking at a terminal: a microphone and a loudspeaker around a session, and what is said on the screen."""
