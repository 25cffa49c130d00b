"""One claim a file: what it says, where it was made, what would refute it, and how it is put to the test."""
