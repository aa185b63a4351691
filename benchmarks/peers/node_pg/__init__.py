"""Node.js with its own https module, and pg."""
