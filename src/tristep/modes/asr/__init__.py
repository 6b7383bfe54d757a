"""ASR: sound in, a language tag and the transcript out."""
