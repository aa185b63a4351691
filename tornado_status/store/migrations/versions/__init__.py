"""One module a migration. They are never changed once released; the next one mends."""
