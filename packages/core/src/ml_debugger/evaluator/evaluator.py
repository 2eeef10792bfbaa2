"""The documented way to evaluate a model version and to find its results again."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ml_debugger.core import distributed
from ml_debugger.core.epochs import EpochHistory, EpochSpec, LastEpoch, resolve_epoch
from ml_debugger.core.errors import ResultNotFoundError
from ml_debugger.core.inputs import as_name
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.service.endpoint import client_of
from ml_debugger.core.settings import Service, resolve_home

if TYPE_CHECKING:
    import pandas as pd

    from ml_debugger.core.evaluation.result import Result
    from ml_debugger.core.store import ResultInfo, Store


class Evaluator:
    """Evaluates what a tracer recorded of one model version: here, or at a service if one is set.

    Cheap to make: the store is opened for each call and closed after it, and a service is asked
    nothing before something is needed.

    Attributes:
        model_name: The model.
        version_name: The version of the model.
        service_client: The connection to a service; None where everything stays here.
    """

    def __init__(
        self,
        model_name: str,
        version_name: str,
        api_endpoint: str | None = None,
        api_key: str | None = None,
        *,
        home: str | os.PathLike[str] | None = None,
    ) -> None:
        """Choose the model version.

        Args:
            model_name: The model, as the tracer was given it.
            version_name: The version, as the tracer was given it.
            api_endpoint: A service to evaluate; `MLD_API_ENDPOINT` if None, and this machine if
                neither.
            api_key: The service's key; `MLD_API_KEY` if None.
            home: The local store's folder; `MLD_HOME` or `~/.ml_debugger` if None.

        Raises:
            InputError: A name is not a text, the endpoint is no address, or there is no key.
        """
        self.model_name = as_name(model_name, "model_name")
        self.version_name = as_name(version_name, "version_name")
        self.service_client = client_of(Service.resolve(api_endpoint, api_key))
        self.home = resolve_home(home)

    def request_evaluation(
        self,
        method_name: str = "default",
        result_name: str | None = None,
        n_epoch: EpochSpec = "latest",
        options: Mapping[str, Any] | None = None,
    ) -> "Result | Any":
        """Evaluate the recorded predictions that have ground truth, and save the result.

        Everything recorded in this process so far is taken into account. Under
        `torch.distributed`, call it on every rank: the primary rank evaluates what all of them
        recorded.

        With a service, what the local store holds of the version is sent there first, a worker of
        the service evaluates, and a copy of the result is returned. Interrupted, that goes on
        there: `get_result` has it later.

        Args:
            method_name: The method, or "default" for the one of the recorded task.
            result_name: What to call the result; by default
                `{model}_{version}_{method}_{YYYYMMDD}`, with `_2`, `_3` where that is taken.
            n_epoch: "latest" (the epoch written last), a number, None for records without an
                epoch, or "all".
            options: `dataset_type` and `run` (a name or several: what to evaluate; by default
                every data set but "train"), `zones` (rules instead of fitted ones), `stable_risk`
                and `operational_risk` (error rates that `stable_coverage`, 0.01, and
                `operational_coverage`, 0.1, may have), `seed`, `max_references`,
                `error_proba_thresh`, `aligned_iou` and `matched_iou` (of detectors), `overlap` (of
                boxes in space: "bev", "3d" or "distance"), `class_names` (for reports).

        Returns:
            The result; None on ranks other than the primary.

        Raises:
            NothingToEvaluateError: Nothing of what was asked for has labels.
            InputError: The method does not exist, the name is taken, or an option does not fit.
            EpochError: `n_epoch` is none of the above.
            StoreError: The result cannot be written; nothing is left of it.
            SyncError: (a ConnectionError) The service cannot be reached, or refused.
            LicenseError: The organisation's quota is exhausted.
        """
        from ml_debugger.core import remote
        from ml_debugger.core.evaluation.method import evaluate
        from ml_debugger.core.evaluation.options import EvaluationOptions
        from ml_debugger.core.writer import flush_all

        version = ModelVersion(self.model_name, self.version_name)

        client = self.service_client
        request: dict[str, Any] = {}

        def prepare() -> None:
            if client is not None:
                chosen = EvaluationOptions.read(options)
                # which epoch is the latest, the service knows
                epoch = n_epoch if n_epoch == "latest" else resolve_epoch(n_epoch, LastEpoch(None))
                request.update(
                    method_name=as_name(method_name, "method_name"),
                    result_name=None
                    if result_name is None
                    else as_name(result_name, "result_name"),
                    n_epoch=epoch,
                    options=chosen.model_dump(mode="json", exclude_unset=True),
                )
            flush_all(self.home, version)
            if client is not None:  # on each rank, whose store may be its own
                remote.send_rest(client, self.home, version)

        def act() -> "Result":
            if client is not None:
                return remote.evaluate(client, self.home, version, request)
            with self._store() as store:
                return evaluate(
                    store,
                    version,
                    method_name=method_name,
                    result_name=result_name,
                    n_epoch=n_epoch,
                    options=options,
                )

        distributed.together(prepare)
        return distributed.once(act)

    def list_results(
        self,
        result_name: str | None = None,
        method_name: str | None = None,
        n_epoch: EpochSpec = "latest",
    ) -> "pd.DataFrame":
        """Return the results of this model version, oldest first.

        Args:
            result_name: Only the result of this name.
            method_name: Only results of this method; "default" for the one of the recorded task.
            n_epoch: "latest" for results of the epoch written last and of all epochs together,
                "all" for every result, a number, or None for records without an epoch.

        Returns:
            A frame with the columns `result_name`, `method_name`, `n_epoch`, `created_at`,
            `completed_at`, `options`; empty where nothing fits.

        Raises:
            NothingToEvaluateError: Nothing is recorded of this version.
            EpochError: `n_epoch` is none of the above.
            InputError: The task has no such method.
            SyncError: (a ConnectionError) The service cannot be reached, or refused.
        """
        import pandas as pd

        from ml_debugger.core.evaluation.method import resolve_method
        from ml_debugger.core.task import task_named

        found, task, history = self._known()
        if method_name is not None:
            method = resolve_method(method_name, task_named(task))
            found = [one for one in found if one.method == method]
        wanted = _wanted_epochs(n_epoch, history)
        if result_name is not None:
            found = [one for one in found if one.name == result_name]
        if wanted is not None:
            found = [one for one in found if one.n_epoch in wanted]
        return pd.DataFrame(
            {
                "result_name": [one.name for one in found],
                "method_name": [one.method for one in found],
                "n_epoch": pd.Series([one.n_epoch for one in found], dtype=object),
                "created_at": pd.to_datetime([one.created_at for one in found], utc=True),
                "completed_at": pd.to_datetime([one.completed_at for one in found], utc=True),
                "options": pd.Series([dict(one.options) for one in found], dtype=object),
            }
        )

    def get_result(self, result_name: str) -> "Result":
        """Open a result of this model version.

        Raises:
            ResultNotFoundError: There is none of this name; similar names are listed.
            SchemaError: It was written by a later version, or is damaged.
            SyncError: (a ConnectionError) The service cannot be reached, or refused.
        """
        from ml_debugger.core.remote import open_result

        found = open_result(self.service_client, self.home, result_name)
        version = ModelVersion(self.model_name, self.version_name)
        if (found.model_name, found.version_name) != version:
            raise ResultNotFoundError(
                f"the result {result_name!r} belongs to {found.model_name}/{found.version_name}, "
                f"not to {version}"
            )
        return found

    def _known(self) -> "tuple[list[ResultInfo], str, EpochHistory]":
        """Return the version's results, its task, and who knows its latest epoch."""
        version = ModelVersion(self.model_name, self.version_name)
        if self.service_client is not None:
            from ml_debugger.core import remote

            return remote.known(self.service_client, version)
        with self._store() as store:
            repository = store.open(version)
            return store.results(version), repository.task, LastEpoch(repository.latest_epoch())

    @contextmanager
    def _store(self) -> "Iterator[Store]":
        from ml_debugger.core.store import Store

        with Store(self.home) as store:
            yield store

    def __repr__(self) -> str:
        return f"Evaluator({self.model_name!r}, {self.version_name!r})"


def _wanted_epochs(n_epoch: EpochSpec, history: EpochHistory) -> "set[int | str | None] | None":
    """Return the epochs whose results are listed; None for all."""
    epoch = resolve_epoch(n_epoch, history)
    if epoch == "all":
        return None
    return {epoch, "all"} if n_epoch == "latest" else {epoch}
