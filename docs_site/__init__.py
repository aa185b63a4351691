"""What turns docs/ and the code's own words into the documentation site: `make docs`."""
