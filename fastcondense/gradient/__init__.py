"""Recover by gradients: IDC, and MDC's subsets."""
