"""From an event log to arrays and batches."""
