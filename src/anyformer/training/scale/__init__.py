"""One run divided over many processes: by data, by parameters, by heads, by experts, by stretches of a sequence."""
