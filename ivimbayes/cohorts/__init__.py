"""Many fits in one model: subjects, sessions, groups, covariates."""
