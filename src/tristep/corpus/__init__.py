"""The data engine: raw sound becomes labelled, graded samples."""
