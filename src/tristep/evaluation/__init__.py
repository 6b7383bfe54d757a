"""The same three modes, measured: test sets as they were published, error rates with intervals, reports."""
