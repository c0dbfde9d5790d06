"""The durable half of the store: WAL shipping from the runtime database to STORE_DIR (docs/storage.md)."""
