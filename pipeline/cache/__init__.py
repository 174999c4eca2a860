"""The feature cache: schema, encoding, writing and reading. cache_schema.md at the project's root is its contract."""
