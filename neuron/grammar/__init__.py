"""From what an answer must look like to the grammar that holds it to that."""
