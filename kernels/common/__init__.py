"""What operators share: argument checks, launch shapes, threads, the crops' filter and the combination of moments."""
