"""Picking the inputs worth labelling, in bulk or one batch at a time."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, ClassVar, cast

import numpy as np
from torch import nn
from typing_extensions import override

from ml_debugger.core.aggregation import BBoxStrategy
from ml_debugger.core.conditions import Condition
from ml_debugger.core.errors import StrategyError
from ml_debugger.core.inference import InferenceTracer
from ml_debugger.core.pool import BatchPool, empty_columns
from ml_debugger.core.query import FilterConfig, Strategy, read_kind, read_strategy
from ml_debugger.core.recording import Recording
from ml_debugger.core.records import Batch
from ml_debugger.core.sampling import SamplingConfig
from ml_debugger.core.selection import NEEDS_RESULT, select


class CommonDataFilter(InferenceTracer):
    """Records a model's calls on unlabelled data, and picks inputs by what the result says."""

    purpose = "data_filter"
    strategies: ClassVar[tuple[type[Strategy], ...]] = (FilterConfig,)

    def __init__(
        self,
        model: nn.Module,
        model_name: str,
        version_name: str,
        result_name: str | None = None,
        n_epoch: str | int | None = "latest",
        filter_config: Strategy | dict[str, Any] | None = None,
        target_layers: Mapping[str, Any] | None = None,
        additional_fields: Sequence[Mapping[str, Any]] | None = None,
        auto_sync: bool = False,
        force_table_recreate: bool = False,
        api_endpoint: str | None = None,
        api_key: str | None = None,
        *,
        home: str | PathLike[str] | None = None,
    ) -> None:
        """Attach to a model, and to an evaluation of it.

        Args:
            model: The model to run.
            model_name: As it was traced.
            version_name: As it was traced.
            result_name: An evaluation of this version; needed for whatever depends on error
                probability or zone.
            n_epoch: The epoch that records belong to; 'latest' is the result's, or else the one
                traced last.
            filter_config: What calls flag, as in `{"target_zones": ["hotspot"]}`; None flags
                nothing.
            target_layers: Layers to record, by alias; None takes those of the result.
            additional_fields: Columns to add to every record.
            auto_sync: Upload in the background, when a service is configured.
            force_table_recreate: Drop this version's records first, traced ones included.
            api_endpoint: The service; `MLD_API_ENDPOINT` if None, and no service if neither.
            api_key: The service's key; `MLD_API_KEY` if None.
            home: The local store's folder; `MLD_HOME` or `~/.ml_debugger` if None.

        Raises:
            InputError: An argument does not fit.
            StrategyError: (a ValueError) `filter_config` does not fit.
            ResultNotFoundError: No such result.
            ArchitectureMismatchError: The result belongs to another model.
        """
        self.filter_config = (
            None if filter_config is None else read_kind(filter_config, self.strategies)
        )
        super().__init__(
            model,
            model_name,
            version_name,
            result_name,
            n_epoch,
            target_layers,
            additional_fields,
            auto_sync,
            force_table_recreate,
            api_endpoint,
            api_key,
            home=home,
        )

    def __call__(
        self, model_input: Any, input_ids: Any, dataset_type: str = "pool", **kwargs: Any
    ) -> tuple[Any, list[bool | None]]:
        """Run the model on a batch, record it, and tell which inputs match the filter.

        Args:
            model_input: What the model takes; a mapping is passed as keyword arguments.
            input_ids: One id an input: str, int or path, or an array or a tensor of them.
            dataset_type: The split.
            **kwargs: Values of the additional fields; passed on to `_parse_and_save_io_data`.

        Returns:
            The model's output, untouched, and a flag an input: True matches `filter_config`,
            False does not, None when there is no `filter_config`.

        Raises:
            InputError: (a ValueError) Something given does not fit; the model has not run.
            StoreError: Records cannot be written, and no more can be kept in memory.
        """
        output, batch = self._trace(
            model_input, None, input_ids, dataset_type, self.n_epoch, kwargs
        )
        if self.filter_config is None or not batch.input_ids:
            return output, [None] * len(batch.input_ids)
        return output, self._flags(batch, self.filter_config)

    def query(
        self,
        n_data: int,
        strategy: str | Strategy | dict[str, Any],
        dataset_type: str = "pool",
        type_cast: type | None = None,
        *,
        sampling: SamplingConfig | dict[str, Any] | None = None,
        diverse: bool = False,
        run: str | None = None,
        explain: bool = False,
        include_empty: bool = False,
    ) -> Any:
        """Pick inputs among all that is recorded of a split, in this epoch.

        Args:
            n_data: How many at most.
            strategy: 'high_error_proba' (most probably wrong first), 'low_error_proba', or a
                FilterConfig or a dict for one, whose matches come most probably wrong first.
            dataset_type: The split.
            type_cast: Called on each id, `int` for example.
            sampling: Draw from the candidates instead of taking the first.
            diverse: Spread the choice over the features of the last layer: of the first
                `4 * n_data` candidates, always the one that is farthest from those chosen so far,
                its squared distance weighted by its error probability. Not with 'zone_quotas'.
            run: Only what this run recorded. Without it a warning names the runs, if several
                recorded the split: they may be of different weights.
            explain: Return a frame instead: `input_id`, `rank_value`, `zone`,
                `estimated_code` (what the features suggest, and what was predicted), `reason`.
            include_empty: Also pick images in which nothing was found, by the probability that
                something was missed; otherwise they are left out.

        Returns:
            Ids, best first; or the frame.

        Raises:
            StrategyError: (a ValueError) The strategy or the sampling does not fit.
            InputError: `n_data` is not a positive int, or an id cannot be cast.
        """
        pool = self._pool(dataset_type, None if run is None else (run,))
        if not pool.records.inputs and isinstance(strategy, Mapping | Strategy):
            self._check_types(read_kind(strategy, self.strategies))
        return select(
            pool,
            n_data,
            strategy,
            type_cast,
            kinds=self.strategies,
            sampling=sampling,
            diverse=diverse,
            explain=explain,
            include_empty=include_empty,
        )

    @override
    def _open(self, home: str | PathLike[str] | None, *, recreate: bool) -> Recording:
        if self.filter_config is not None:
            self._check_filter(self.filter_config)
        return super()._open(home, recreate=recreate)

    def _check_filter(self, config: Strategy) -> None:
        """Refuse a filter that no call could be judged by."""
        if self.result is None and config.columns & self.schema.estimated:
            raise StrategyError(f"filter_config {NEEDS_RESULT}")
        known = sorted(empty_columns(self.schema, self._input_fields))
        read_strategy(config, self.strategies, known=known)
        self._check_types(config)

    def _check_types(self, config: Strategy) -> None:
        """Refuse values that cannot be compared with their column, before there is a row."""
        columns = empty_columns(self.schema, self._input_fields)
        if isinstance(config, BBoxStrategy):
            config.aggregate(columns.__getitem__, np.zeros(0, np.int64), 0)
        found = config.bbox_filter if isinstance(config, BBoxStrategy) else config
        for one in (found.conditions if isinstance(found, FilterConfig) else None) or ():
            for name in columns.keys() & one.keys():
                Condition.read(name, one[name]).mask(columns[name])

    def _flags(self, batch: Batch, config: Strategy) -> list[bool | None]:
        """Judge one batch by the same estimates and comparisons as `query`."""
        pool = BatchPool(batch, self.run, self.result, self._input_fields)
        if isinstance(config, BBoxStrategy):
            return config.flags(pool.column, pool.counts, len(batch.input_ids))
        assert isinstance(config, FilterConfig)  # the constructor takes no other kind
        return cast("list[bool | None]", pool.any_unit(config.matches(pool.column)).tolist())
