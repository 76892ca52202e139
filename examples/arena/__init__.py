"""Every optimizer tuned alike: which one needs the fewest steps."""
