"""What others get and give: bundles, exports, verification."""
