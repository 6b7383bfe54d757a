"""TTS: text and context in, audio codes out."""
