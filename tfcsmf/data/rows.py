"""Reserved numbers: rows that begin every embedding table, and the unknown time."""

PADDING = 0  # contributes nothing (histories, multi-valued features)
MISSING = 1  # a value that was not given
UNKNOWN = 2  # a value that preparation has not met (out of vocabulary)
NUM_RESERVED = 3  # the first ordinary row

NO_TIME = 2**63 - 1  # int64 "time" of an event whose time is unknown
