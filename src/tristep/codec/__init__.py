"""The other end of the sound: speech <-> codes, and whose voice it is."""
