"""What is at which address: one class a resource, one method a verb."""
