"""Names that the command line offers; nothing is imported here, so that help is shown at once."""

SIGNAL_NAMES = (
    "monoexponential", "kurtosis", "simplified", "biexponential", "biexponential_kurtosis", "triexponential",
    "stretched",
)  # fmt: skip
