"""The tuning loop: what was asked for (`spec`), its parts (`build`), the loop (`runner`), its log and its results."""
