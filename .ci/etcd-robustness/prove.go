package robustness

import (
	"slices"
	"testing"

	"go.uber.org/zap"

	"go.etcd.io/etcd/tests/v3/robustness/model"
	"go.etcd.io/etcd/tests/v3/robustness/report"
	"go.etcd.io/etcd/tests/v3/robustness/validate"
)

// A check of etcd's, and a change of what clients saw that it must find.
type check struct {
	name string
	of   func(*validate.RobustnessResult) *validate.Result
	// Falsifies the reports, and returns false if there is nothing to falsify.
	falsify func([]report.ClientReport) bool
}

var checks = []check{
	{"linearizability", func(result *validate.RobustnessResult) *validate.Result { return &result.Linearization.Result }, raiseRevision},
	{"watches", func(result *validate.RobustnessResult) *validate.Result { return &result.Watch }, loseEvent},
	{"serializable reads", func(result *validate.RobustnessResult) *validate.Result { return &result.Serializable }, changeOldRead},
}

// prove shows that the checks are on: each fails when one answer or event is falsified.
func prove(t *testing.T, config validate.Config, seen []report.ClientReport, persisted []model.EtcdRequest) {
	for _, check := range checks {
		falsified := clone(seen)
		if !check.falsify(falsified) {
			t.Errorf("%s: nothing can be falsified", check.name)
			continue
		}
		result := validate.ValidateAndReturnVisualize(zap.NewNop(), config, falsified, persisted, patience)
		if found := check.of(&result); found.Status != validate.Failure {
			t.Errorf("%s: the check overlooks a falsified report: %s %s", check.name, found.Status, found.Message)
		}
	}
}

// clone copies what is falsified. Answers are pointers, so they are replaced, never changed.
func clone(seen []report.ClientReport) []report.ClientReport {
	copied := slices.Clone(seen)
	for i := range copied {
		copied[i].KeyValue = slices.Clone(copied[i].KeyValue)
		copied[i].Watch = slices.Clone(copied[i].Watch)
	}
	return copied
}

// raiseRevision tells a client that its write has another revision.
func raiseRevision(seen []report.ClientReport) bool {
	for _, one := range seen {
		for i, op := range one.KeyValue {
			request, answer := op.Input.(model.EtcdRequest), op.Output.(model.MaybeEtcdResponse)
			if request.Type == model.Txn && !request.IsRead() && answer.Error == "" && answer.Revision > 2 {
				answer.Revision++
				one.KeyValue[i].Output = answer
				return true
			}
		}
	}
	return false
}

// loseEvent takes one event out of a watch that has got others before and after it.
func loseEvent(seen []report.ClientReport) bool {
	for _, one := range seen {
		for i, watch := range one.Watch {
			for j, response := range watch.Responses {
				if j == 0 || j+1 == len(watch.Responses) || len(response.Events) == 0 ||
					len(watch.Responses[j-1].Events) == 0 || len(watch.Responses[j+1].Events) == 0 {
					continue
				}
				watch.Responses = slices.Clone(watch.Responses)
				watch.Responses[j].Events = response.Events[1:]
				one.Watch[i] = watch
				return true
			}
		}
	}
	return false
}

// changeOldRead gives a read of an old revision another count.
func changeOldRead(seen []report.ClientReport) bool {
	for _, one := range seen {
		for i, op := range one.KeyValue {
			request, answer := op.Input.(model.EtcdRequest), op.Output.(model.MaybeEtcdResponse)
			if request.Type == model.Range && request.Range.Revision != 0 && answer.Error == "" && answer.Range != nil {
				changed := *answer.Range
				changed.Count++
				answer.Range = &changed
				one.KeyValue[i].Output = answer
				return true
			}
		}
	}
	return false
}
