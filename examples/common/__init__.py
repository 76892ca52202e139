"""What all examples share: checks, files, the environment, figures and pages."""
