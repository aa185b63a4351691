"""Following the log: one reader of it for all subscriptions, woken by NOTIFY between servers."""
