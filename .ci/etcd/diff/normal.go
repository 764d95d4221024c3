package main

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// equal tells whether two normal answers are the same message, or the same error with the same text.
func equal(one, other answer) bool {
	if one.err != nil || other.err != nil {
		return one.err != nil && other.err != nil &&
			status.Code(one.err) == status.Code(other.err) &&
			refusal(one.err) == refusal(other.err)
	}
	return proto.Equal(one.message, other.message)
}

// refusal returns the text of an error. gRPC adds the sizes of a message that is too large, which depend on the encoding.
func refusal(err error) string {
	text, _, _ := strings.Cut(status.Convert(err).Message(), " (")
	return text
}

// normalise removes from an answer what may differ: ids of cluster and member, the raft term, the rest of a lease's time, and the
// order of what has none. Returns the header's revision, or 0.
func normalise(call call, answer answer) (int64, error) {
	if answer.err != nil {
		return 0, nil
	}
	switch message := answer.message.(type) {
	case *pb.RangeResponse:
		untie(call.request.(*pb.RangeRequest), message)
		return header(message.Header), nil
	case *pb.PutResponse:
		return header(message.Header), nil
	case *pb.DeleteRangeResponse:
		return header(message.Header), nil
	case *pb.TxnResponse:
		return header(message.Header), normaliseTxn(call.request.(*pb.TxnRequest), message)
	case *pb.CompactionResponse:
		return header(message.Header), nil
	case *pb.LeaseGrantResponse:
		header(message.Header)
		if call.request.(*pb.LeaseGrantRequest).ID == 0 {
			if message.ID <= 0 {
				return 0, fmt.Errorf("the lease has the id %d", message.ID)
			}
			message.ID = 0
		}
	case *pb.LeaseRevokeResponse:
		return header(message.Header), nil
	case *pb.LeaseTimeToLiveResponse:
		header(message.Header)
		slices.SortFunc(message.Keys, bytes.Compare)
		if message.TTL > message.GrantedTTL || message.TTL >= 0 && message.TTL < message.GrantedTTL-300 {
			return 0, fmt.Errorf("%d of %d s are left", message.TTL, message.GrantedTTL)
		}
		message.TTL = min(message.TTL, 0)
	case *pb.LeaseLeasesResponse:
		header(message.Header)
		slices.SortFunc(message.Leases, func(a, b *pb.LeaseStatus) int { return cmp.Compare(a.ID, b.ID) })
	case *pb.LeaseKeepAliveResponse:
		header(message.Header)
	default:
		panic(fmt.Sprintf("an answer of the type %T", message))
	}
	return 0, nil
}

// header removes what belongs to the cluster, and returns the revision.
func header(header *pb.ResponseHeader) int64 {
	if header == nil {
		return 0
	}
	header.ClusterId, header.MemberId, header.RaftTerm = 0, 0, 0
	return header.Revision
}

func normaliseTxn(request *pb.TxnRequest, answer *pb.TxnResponse) error {
	ops := request.Failure
	if answer.Succeeded {
		ops = request.Success
	}
	if len(ops) != len(answer.Responses) {
		return fmt.Errorf("%d answers to %d operations", len(answer.Responses), len(ops))
	}
	for i, op := range ops {
		switch op := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			if answer := answer.Responses[i].GetResponseRange(); answer != nil {
				untie(op.RequestRange, answer)
				header(answer.Header)
			}
		case *pb.RequestOp_RequestTxn:
			if answer := answer.Responses[i].GetResponseTxn(); answer != nil {
				header(answer.Header)
				if err := normaliseTxn(op.RequestTxn, answer); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// untie sorts pairs that are equal by the sort target, because their order is not defined. If a limit cuts such pairs, which of them
// are returned isn't defined either: only their targets stay.
func untie(request *pb.RangeRequest, answer *pb.RangeResponse) {
	target := request.SortTarget
	if target == pb.RangeRequest_KEY {
		return
	}
	order := func(a, b *mvccpb.KeyValue) int { return compareTargets(target, a, b) }
	ties := func(from int) int {
		to := from + 1
		for to < len(answer.Kvs) && order(answer.Kvs[from], answer.Kvs[to]) == 0 {
			to++
		}
		return to
	}
	// Without an order the range is cut in the order of keys, and sorted then.
	cut := answer.More && request.SortOrder != pb.RangeRequest_NONE
	if target == pb.RangeRequest_VALUE && request.KeysOnly {
		// The answer doesn't have what it is sorted by.
		ties = func(int) int { return len(answer.Kvs) }
	}
	for from := 0; from < len(answer.Kvs); {
		to := ties(from)
		tied := answer.Kvs[from:to]
		if cut && to == len(answer.Kvs) {
			for i := range tied {
				tied[i] = onlyTarget(target, tied[i])
			}
		}
		slices.SortFunc(tied, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
		from = to
	}
}

func compareTargets(target pb.RangeRequest_SortTarget, a, b *mvccpb.KeyValue) int {
	switch target {
	case pb.RangeRequest_VERSION:
		return cmp.Compare(a.Version, b.Version)
	case pb.RangeRequest_CREATE:
		return cmp.Compare(a.CreateRevision, b.CreateRevision)
	case pb.RangeRequest_MOD:
		return cmp.Compare(a.ModRevision, b.ModRevision)
	default:
		return bytes.Compare(a.Value, b.Value)
	}
}

func onlyTarget(target pb.RangeRequest_SortTarget, pair *mvccpb.KeyValue) *mvccpb.KeyValue {
	switch target {
	case pb.RangeRequest_VERSION:
		return &mvccpb.KeyValue{Version: pair.Version}
	case pb.RangeRequest_CREATE:
		return &mvccpb.KeyValue{CreateRevision: pair.CreateRevision}
	case pb.RangeRequest_MOD:
		return &mvccpb.KeyValue{ModRevision: pair.ModRevision}
	default:
		return &mvccpb.KeyValue{Value: pair.Value}
	}
}
