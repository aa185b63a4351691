"""The live stream: events to readers as they are committed, over SSE and WebSocket."""
