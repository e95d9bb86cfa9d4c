"""Pictures and pages of what the methods found."""
