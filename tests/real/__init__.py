"""What real files say, where they have been fetched (`make test-real`)."""
