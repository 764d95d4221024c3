package main

import (
	"bytes"
	"math"
	"math/rand/v2"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

var (
	keys = []string{"a", "a\x00", "a\x00\xff", "ab", "b", "c/1", "c/2", "c/3", "\x00", "\xff\xff", "d"}
	// Ends of ranges: none, open, ends of prefixes, and ends at or before many keys.
	ends   = []string{"", "", "", "\x00", "\x00", "b", "a\x00\x01", "c0", "\xff", "a"}
	values = []string{"", "v", "w", "a longer value", "v\x00"}
	leases = []int64{1, 2, -3, 77}
)

// source draws random calls. It knows the revisions of the history, so that it hits their edges.
type source struct {
	*rand.Rand
	newest, compacted int64
}

func newSource(seed uint64) *source {
	return &source{Rand: rand.New(rand.NewPCG(seed, 0x65746364)), newest: 1}
}

func (s *source) oneIn(n int) bool { return s.IntN(n) == 0 }

func pick[T any](s *source, of []T) T { return of[s.IntN(len(of))] }

func (s *source) key() []byte {
	if s.oneIn(60) {
		return nil
	}
	return []byte(pick(s, keys))
}

func (s *source) end() []byte { return []byte(pick(s, ends)) }

func (s *source) value() []byte {
	switch s.IntN(150) {
	case 0:
		// Beyond the limit of a request, and below that of a message.
		return bytes.Repeat([]byte("x"), 1600<<10)
	case 1:
		return bytes.Repeat([]byte("y"), 70<<10)
	}
	return []byte(pick(s, values))
}

func (s *source) lease() int64 {
	if s.oneIn(3) {
		return pick(s, leases)
	}
	return 0
}

// revision draws one to read at: often the newest, else a past, compacted, future or negative one.
func (s *source) revision() int64 {
	switch s.IntN(10) {
	case 0:
		return s.newest + s.Int64N(3)
	case 1:
		return -s.Int64N(3)
	case 2:
		return s.compacted + s.Int64N(3) - 1
	case 3, 4:
		return max(s.newest-s.Int64N(12), 0)
	}
	return 0
}

// bound draws a bound of mod and create revisions.
func (s *source) bound() int64 {
	if s.oneIn(5) {
		return s.newest - s.Int64N(8)
	}
	return 0
}

func (s *source) rangeRequest() *pb.RangeRequest {
	request := &pb.RangeRequest{
		Key:               s.key(),
		RangeEnd:          s.end(),
		Limit:             pick(s, []int64{0, 0, 0, 1, 2, 3, 100, -1, math.MaxInt64}),
		Revision:          s.revision(),
		Serializable:      s.oneIn(4),
		KeysOnly:          s.oneIn(4),
		CountOnly:         s.oneIn(6),
		MinModRevision:    s.bound(),
		MaxModRevision:    s.bound(),
		MinCreateRevision: s.bound(),
		MaxCreateRevision: s.bound(),
	}
	if s.oneIn(2) {
		request.SortOrder = pb.RangeRequest_SortOrder(s.IntN(3))
		request.SortTarget = pb.RangeRequest_SortTarget(s.IntN(5))
	}
	if s.oneIn(60) {
		request.SortOrder = 3
	}
	if s.oneIn(60) {
		request.SortTarget = 9
	}
	return request
}

func (s *source) streamRequest() *pb.RangeRequest {
	request := s.rangeRequest()
	if !s.oneIn(6) {
		request.SortOrder, request.SortTarget = 0, 0
		request.MinModRevision, request.MaxModRevision = 0, 0
		request.MinCreateRevision, request.MaxCreateRevision = 0, 0
	}
	if request.SortOrder == pb.RangeRequest_NONE && request.SortTarget <= pb.RangeRequest_VALUE {
		// etcd sorts each part of such a stream and continues behind its last pair, so it loses pairs and counts too few.
		request.SortTarget = pb.RangeRequest_KEY
	}
	return request
}

func (s *source) put() *pb.PutRequest {
	request := &pb.PutRequest{
		Key:         s.key(),
		Value:       s.value(),
		Lease:       s.lease(),
		PrevKv:      s.oneIn(3),
		IgnoreValue: s.oneIn(6),
		IgnoreLease: s.oneIn(6),
	}
	if request.IgnoreValue && !s.oneIn(6) {
		request.Value = nil
	}
	if request.IgnoreLease && !s.oneIn(6) {
		request.Lease = 0
	}
	return request
}

func (s *source) deletion() *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: s.key(), RangeEnd: s.end(), PrevKv: s.oneIn(2)}
}

func (s *source) compare() *pb.Compare {
	near := s.newest - s.Int64N(6)
	compare := &pb.Compare{
		Result: pb.Compare_CompareResult(s.IntN(4)),
		Key:    s.key(),
	}
	if s.oneIn(4) {
		compare.RangeEnd = s.end()
	}
	switch s.IntN(5) {
	case 0:
		compare.Target, compare.TargetUnion = pb.Compare_VERSION, &pb.Compare_Version{Version: s.Int64N(3)}
	case 1:
		compare.Target, compare.TargetUnion = pb.Compare_CREATE, &pb.Compare_CreateRevision{CreateRevision: pick(s, []int64{0, near})}
	case 2:
		compare.Target, compare.TargetUnion = pb.Compare_MOD, &pb.Compare_ModRevision{ModRevision: pick(s, []int64{0, near})}
	case 3:
		compare.Target, compare.TargetUnion = pb.Compare_LEASE, &pb.Compare_Lease{Lease: s.lease()}
	default:
		compare.Target, compare.TargetUnion = pb.Compare_VALUE, &pb.Compare_Value{Value: []byte(pick(s, values))}
	}
	if s.oneIn(30) {
		// The target and its value disagree, the value is missing, or target or relation is unknown.
		switch s.IntN(4) {
		case 0:
			compare.Target = pb.Compare_CompareTarget(s.IntN(5))
		case 1:
			compare.TargetUnion = nil
		case 2:
			compare.Target = 9
		default:
			compare.Result = 9
		}
	}
	return compare
}

// txn draws a transaction that stops no etcd.
func (s *source) txn() *pb.TxnRequest {
	for {
		txn := s.tree(2)
		if s.oneIn(80) {
			for range 129 {
				txn.Success = append(txn.Success, of(s.rangeRequest()))
			}
		}
		puts, unchecked := contents(txn)
		// etcd doesn't find that such a deletion and a put concern one key. A put that then keeps the key's value stops every
		// member, and so does a compaction at exactly this revision.
		if !puts || !unchecked {
			return txn
		}
	}
}

func (s *source) tree(depth int) *pb.TxnRequest {
	txn := &pb.TxnRequest{}
	for range s.IntN(3) {
		txn.Compare = append(txn.Compare, s.compare())
	}
	for range s.IntN(4) {
		txn.Success = append(txn.Success, s.op(depth))
	}
	for range s.IntN(4) {
		txn.Failure = append(txn.Failure, s.op(depth))
	}
	return txn
}

func (s *source) op(depth int) *pb.RequestOp {
	switch s.IntN(9) {
	case 0, 1, 2:
		return of(s.rangeRequest())
	case 3, 4:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: s.deletion()}}
	case 5:
		if depth > 0 {
			return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: s.tree(depth - 1)}}
		}
	case 6:
		if s.oneIn(12) {
			return &pb.RequestOp{}
		}
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: s.put()}}
}

func of(request *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: request}}
}

// contents tells whether a transaction has puts, and whether it has deletions of ranges that have no end or hold no key.
func contents(txn *pb.TxnRequest) (puts, unchecked bool) {
	for _, ops := range [][]*pb.RequestOp{txn.Success, txn.Failure} {
		for _, op := range ops {
			switch request := op.Request.(type) {
			case *pb.RequestOp_RequestPut:
				puts = true
			case *pb.RequestOp_RequestDeleteRange:
				end := request.RequestDeleteRange.RangeEnd
				if len(end) > 0 && bytes.Compare(request.RequestDeleteRange.Key, end) >= 0 {
					unchecked = true
				}
			case *pb.RequestOp_RequestTxn:
				nestedPuts, nestedUnchecked := contents(request.RequestTxn)
				puts, unchecked = puts || nestedPuts, unchecked || nestedUnchecked
			}
		}
	}
	return puts, unchecked
}

func (s *source) grant() *pb.LeaseGrantRequest {
	// No lease may expire while a history is compared.
	ttl := 10_000 + s.Int64N(1000)
	switch s.IntN(12) {
	case 0:
		ttl = 9_000_000_000
	case 1:
		ttl = 9_000_000_001
	}
	return &pb.LeaseGrantRequest{ID: pick(s, leases), TTL: ttl}
}

func (s *source) compaction() *pb.CompactionRequest {
	revision := s.newest - s.Int64N(10)
	switch s.IntN(8) {
	case 0:
		revision = s.newest + 1
	case 1:
		revision = s.compacted
	case 2:
		revision = s.newest
	case 3:
		revision = -s.Int64N(2)
	}
	return &pb.CompactionRequest{Revision: revision, Physical: s.oneIn(2)}
}
