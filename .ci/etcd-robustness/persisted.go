package robustness

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"go.etcd.io/etcd/tests/v3/robustness/model"
)

// line is an accepted operation as the program prints it. One field is set.
type line struct {
	Put     *put
	Delete  *string
	Txn     *txn
	Compact *int64
	Grant   *int64
	Revoke  *int64
}

type put struct {
	Key, Value string
	Lease      int64
}

type txn struct {
	Compare []struct {
		Key          string
		Mod, Version int64
	}
	Success, Failure []op
}

type op struct {
	Put    *put
	Delete *string
	Range  *struct {
		Start, End string
		Limit      int64
		KeysOnly   bool `json:"keys_only"`
	}
}

// persistedRequests returns the requests that a group has accepted, in their order.
func persistedRequests(program string, directories []string) ([]model.EtcdRequest, error) {
	command := exec.Command(program, directories...)
	var complaints bytes.Buffer
	command.Stderr = &complaints
	output, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", program, err, complaints.String())
	}
	var requests []model.EtcdRequest
	for decoder := json.NewDecoder(bytes.NewReader(output)); ; {
		var next line
		if err := decoder.Decode(&next); errors.Is(err, io.EOF) {
			return requests, nil
		} else if err != nil {
			return nil, err
		}
		request, err := next.request()
		if err != nil {
			return nil, err
		}
		requests = append(requests, request)
	}
}

// request returns the operation in the form that etcd's own reader of logs gives it.
func (l *line) request() (model.EtcdRequest, error) {
	switch {
	case l.Put != nil || l.Delete != nil:
		single := op{Put: l.Put, Delete: l.Delete}
		return model.EtcdRequest{Type: model.Txn, Txn: &model.TxnRequest{OperationsOnSuccess: operations([]op{single}, true)}}, nil
	case l.Txn != nil:
		request := model.TxnRequest{
			Conditions:          []model.EtcdCondition{},
			OperationsOnSuccess: operations(l.Txn.Success, false),
			OperationsOnFailure: operations(l.Txn.Failure, false),
		}
		for _, compare := range l.Txn.Compare {
			request.Conditions = append(request.Conditions, model.EtcdCondition{
				Key: compare.Key, ExpectedRevision: compare.Mod, ExpectedVersion: compare.Version,
			})
		}
		return model.EtcdRequest{Type: model.Txn, Txn: &request}, nil
	case l.Compact != nil:
		return model.EtcdRequest{Type: model.Compact, Compact: &model.CompactRequest{Revision: *l.Compact}}, nil
	case l.Grant != nil:
		return model.EtcdRequest{Type: model.LeaseGrant, LeaseGrant: &model.LeaseGrantRequest{LeaseID: *l.Grant}}, nil
	case l.Revoke != nil:
		return model.EtcdRequest{Type: model.LeaseRevoke, LeaseRevoke: &model.LeaseRevokeRequest{LeaseID: *l.Revoke}}, nil
	}
	return model.EtcdRequest{}, errors.New("an operation that isn't known")
}

// operations converts operations. As in etcd's reader, puts of transactions have no lease.
func operations(ops []op, leases bool) []model.EtcdOperation {
	found := []model.EtcdOperation{}
	for _, op := range ops {
		switch {
		case op.Put != nil:
			options := model.PutOptions{Key: op.Put.Key, Value: model.ToValueOrHash(op.Put.Value)}
			if leases {
				options.LeaseID = op.Put.Lease
			}
			found = append(found, model.EtcdOperation{Type: model.PutOperation, Put: options})
		case op.Delete != nil:
			found = append(found, model.EtcdOperation{Type: model.DeleteOperation, Delete: model.DeleteOptions{Key: *op.Delete}})
		case op.Range != nil:
			found = append(found, model.EtcdOperation{Type: model.RangeOperation, Range: model.RangeOptions{
				Start: op.Range.Start, End: op.Range.End, Limit: op.Range.Limit, KeysOnly: op.Range.KeysOnly,
			}})
		}
	}
	return found
}
