"""Go's net/http with pgx: one program, which commits each request by itself or many at once."""
