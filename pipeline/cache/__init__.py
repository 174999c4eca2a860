"""The feature cache: schema, encoding, writing, reading. Its contract is cache_schema.md at the root."""
