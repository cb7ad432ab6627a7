"""The stage that makes condensed images: initial images, schedules, and an engine with three objectives."""
