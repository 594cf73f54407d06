"""How well gates tell requests apart, where no edit is trained."""
