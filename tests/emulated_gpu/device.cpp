// A device "cuda:0" whose memory is the host's: allocator, device guard, hooks, and operators by those of the CPU.
//
// An operator of the device sees its tensors under two labels over the same bytes: the caller's says CUDA, the one that
// the CPU's operator gets says CPU. Results are labelled back. What a real device refuses (operands on two devices,
// generators of the CPU, dtypes that a convolution does not mix) is refused here too.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/native_batch_norm.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <set>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceType;
using c10::Stream;
using OptionalTensor = std::optional<Tensor>;
using Integers = c10::SymIntArrayRef;

const Device kDevice(DeviceType::CUDA, 0);
const c10::DispatchKeySet kCudaKeys(c10::DispatchKey::CUDA);
const c10::DispatchKeySet kCpuKeys(c10::DispatchKey::CPU);

// Memory ------------------------------------------------------------------------------------------------------------

int64_t allocated_bytes = 0;  // ever: what is given back is not counted

struct Allocator final : c10::Allocator {
  // Rounded as CUDA's caching allocator does it, and full of NaN, so that reading what nobody wrote shows.
  c10::DataPtr allocate(size_t bytes) override {
    constexpr size_t kBlock = 512;
    const size_t rounded = (bytes + kBlock - 1) / kBlock * kBlock;
    void* memory = rounded ? c10::alloc_cpu(rounded) : nullptr;
    if (memory) std::memset(memory, 0xFF, rounded);
    allocated_bytes += static_cast<int64_t>(rounded);
    return {memory, memory, &c10::free_cpu, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Allocator allocator;

struct Generator final : c10::GeneratorImpl {
  at::Generator of_cpu = at::detail::createCPUGenerator(c10::default_rng_seed_val);

  Generator() : c10::GeneratorImpl(kDevice, kCudaKeys) {}
  void set_current_seed(uint64_t seed) override { of_cpu.set_current_seed(seed); }
  uint64_t current_seed() const override { return of_cpu.current_seed(); }
  uint64_t seed() override { return of_cpu.seed(); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  void set_state(const c10::TensorImpl& state) override { of_cpu.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return of_cpu.unsafeGetGeneratorImpl()->get_state();
  }
  Generator* clone_impl() const override {
    auto* twin = new Generator();
    twin->of_cpu = of_cpu.clone();
    return twin;
  }
};

at::Generator& default_generator() {
  static at::Generator generator = at::make_generator<Generator>();
  return generator;
}

// What torch asks about the device ----------------------------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device device) const override { return check(device), kDevice; }
  Device getDevice() const override { return kDevice; }
  void setDevice(Device device) const override { check(device); }
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  // Everything happens at once and in order: one stream would do, and Python keeps those that programs see.
  Stream getStream(Device) const override { return Stream(Stream::DEFAULT, kDevice); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, kDevice); }
  Stream exchangeStream(Stream) const override { return Stream(Stream::DEFAULT, kDevice); }

  static void check(Device device) { TORCH_CHECK(device.index() <= 0, "CUDA error: invalid device ordinal"); }
};
Guard guard;

struct Hooks : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Generator>(); }
  Device getDeviceFromPtr(void*) const override { return kDevice; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(DeviceType::CPU); }
  c10::Allocator* getCUDADeviceAllocator() const override { return &allocator; }
  // As with a cuDNN that takes everything: torch then chooses operators, layouts and guards as it does on a card.
  bool hasCuDNN() const override { return true; }
  bool compiledWithCuDNN() const override { return true; }
  bool supportsDilatedConvolutionWithCuDNN() const override { return true; }
  bool supportsDepthwiseConvolutionWithCuDNN() const override { return true; }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override { return true; }
  long versionCuDNN() const override { return 91900; }
  long versionRuntimeCuDNN() const override { return 91900; }
  double batchnormMinEpsilonCuDNN() const override { return 0.0; }
};

// The two labels of one memory --------------------------------------------------------------------------------------

c10::DataPtr labelled(const c10::Storage& storage, Device device) {
  auto* kept = new c10::Storage(storage);  // lives as long as the label does
  return {storage.mutable_data(), kept, [](void* held) { delete static_cast<c10::Storage*>(held); }, device};
}

void give_shape(const Tensor& to, const Tensor& from) {
  to.unsafeGetTensorImpl()->set_storage_offset(from.storage_offset());
  to.unsafeGetTensorImpl()->set_sizes_and_strides(from.sizes(), from.strides());
}

Tensor relabelled(const Tensor& tensor, Device device, c10::DispatchKeySet keys) {
  TORCH_CHECK(tensor.layout() == at::kStrided, "emulated GPU: only strided tensors, no sparse ones");
  c10::Allocator* of_device = device.is_cpu() ? c10::GetAllocator(DeviceType::CPU) : &allocator;
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), tensor.storage().nbytes(), labelled(tensor.storage(), device), of_device, true);
  Tensor result = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, tensor.dtype());
  give_shape(result, tensor);
  return result;
}

Tensor as_cpu(const Tensor& tensor) { return relabelled(tensor, Device(DeviceType::CPU), kCpuKeys); }
OptionalTensor as_cpu(const OptionalTensor& tensor) {
  return tensor && tensor->defined() ? OptionalTensor(as_cpu(*tensor)) : std::nullopt;
}
Tensor as_cuda(const Tensor& tensor) { return tensor.defined() ? relabelled(tensor, kDevice, kCudaKeys) : tensor; }

// Any operator, by that of the CPU ----------------------------------------------------------------------------------

class Borrowed {
 public:
  explicit Borrowed(const c10::OperatorHandle& op) : schema_(op.schema()), name_(op.operator_name().name) {}

  void run(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const size_t count = schema_.arguments().size();
    for (size_t i = 0; i < count; ++i) to_cpu((*stack)[stack->size() - count + i], schema_.arguments()[i].name());
    static const std::set<std::string> between_devices = {"aten::copy_", "aten::_copy_from", "aten::_to_copy"};
    TORCH_CHECK(
        operand_of_cpu_.empty() || pairs_.empty() || between_devices.count(name_),
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (argument ",
        operand_of_cpu_, " of ", name_, ")");
    op.redispatchBoxed(kCpuKeys, stack);
    for (const auto& pair : pairs_) follow(pair);
    const size_t results = schema_.returns().size();
    for (size_t i = 0; i < results; ++i) {
      const auto* alias = schema_.returns()[i].alias_info();
      to_cuda((*stack)[stack->size() - results + i], alias && alias->isWrite());
    }
  }

 private:
  struct Pair { Tensor cuda, cpu; };

  Tensor to_cpu(const Tensor& tensor, const std::string& argument) {
    if (!tensor.defined()) return tensor;
    if (!tensor.is_cuda()) {
      // Scalars may come from the CPU, and so may the indices of an index.
      const bool indices = argument == "indices" && name_.find("index") != std::string::npos;
      if (tensor.dim() > 0 && !indices) operand_of_cpu_ = argument;
      return tensor;
    }
    for (const auto& pair : pairs_)
      if (pair.cuda.is_same(tensor)) return pair.cpu;
    pairs_.push_back({tensor, as_cpu(tensor)});
    return pairs_.back().cpu;
  }

  void to_cpu(c10::IValue& value, const std::string& argument) {
    if (value.isTensor()) {
      value = to_cpu(value.toTensor(), argument);
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(to_cpu(tensor, argument));
      value = std::move(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<OptionalTensor> list;
      for (const OptionalTensor tensor : value.toOptionalTensorList())
        list.push_back(tensor ? OptionalTensor(to_cpu(*tensor, argument)) : std::nullopt);
      value = std::move(list);
    } else if (value.isDevice() && value.toDevice().is_cuda()) {
      value = Device(DeviceType::CPU);
      asks_for_device_ = true;
    } else if (value.isGenerator()) {
      const at::Generator generator = value.toGenerator();
      TORCH_CHECK(generator.device().is_cuda(), "Expected a 'cuda' device type for generator but found 'cpu'");
      value = static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->of_cpu;
    }
  }

  // What the operator did to an argument's shape and memory (resize_, squeeze_) shows under the caller's label too.
  static void follow(const Pair& pair) {
    if (pair.cpu.storage().data() != pair.cuda.storage().data()) {
      auto* storage = pair.cuda.storage().unsafeGetStorageImpl();
      storage->set_data_ptr_noswap(labelled(pair.cpu.storage(), kDevice));
      storage->set_nbytes(pair.cpu.storage().nbytes());
    }
    const bool same = pair.cpu.sizes() == pair.cuda.sizes() && pair.cpu.strides() == pair.cuda.strides() &&
        pair.cpu.storage_offset() == pair.cuda.storage_offset();
    if (!same) give_shape(pair.cuda, pair.cpu);
  }

  Tensor to_cuda(const Tensor& tensor, bool is_argument) const {
    if (!tensor.defined() || !tensor.device().is_cpu()) return tensor;
    for (const auto& pair : pairs_)
      if (pair.cpu.is_same(tensor)) return pair.cuda;
    if (is_argument || (pairs_.empty() && !asks_for_device_)) return tensor;  // copy_ to the CPU
    for (const auto& pair : pairs_) {
      if (!pair.cpu.storage().is_alias_of(tensor.storage())) continue;
      Tensor view = at::detail::make_tensor<c10::TensorImpl>(
          c10::TensorImpl::VIEW, c10::Storage(pair.cuda.storage()), pair.cuda.key_set(), tensor.dtype());
      give_shape(view, tensor);
      return view;
    }
    return as_cuda(tensor);
  }

  void to_cuda(c10::IValue& value, bool is_argument) const {
    if (value.isTensor()) {
      value = to_cuda(value.toTensor(), is_argument);
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(to_cuda(tensor, is_argument));
      value = std::move(list);
    }
  }

  const c10::FunctionSchema& schema_;
  const std::string& name_;
  std::vector<Pair> pairs_;
  std::string operand_of_cpu_;
  bool asks_for_device_ = false;
};

void borrow(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  Borrowed(op).run(op, stack);
}

// Operators that the CPU does not have, or has otherwise ------------------------------------------------------------

at::ScalarType or_default(std::optional<at::ScalarType> dtype) {
  return dtype.value_or(at::typeMetaToScalarType(at::get_default_dtype()));
}

Tensor empty(
    Integers size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator, kCudaKeys, or_default(dtype), format);
}

Tensor empty_strided(
    Integers size, Integers stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator, kCudaKeys, or_default(dtype));
}

// cuDNN accumulates half precision in float32, wants one dtype, and answers channels last when either operand is.
Tensor convolution_of_cudnn(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Integers stride, Integers padding,
    Integers dilation, c10::SymInt groups) {
  TORCH_CHECK(x.is_cuda() && weight.is_cuda(), "Input and weight should be on the same device");
  TORCH_CHECK(
      x.scalar_type() == weight.scalar_type(), "Input type (", x.scalar_type(), ") and weight type (",
      weight.scalar_type(), ") should be the same");
  const bool half = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
  const auto wide = [&](const Tensor& tensor) { return half ? as_cpu(tensor).to(at::kFloat) : as_cpu(tensor); };
  const auto wide_bias = bias && bias->defined() ? OptionalTensor(wide(*bias)) : std::nullopt;
  const std::vector<c10::SymInt> none(stride.size(), 0);
  Tensor y = at::convolution_symint(
      wide(x), wide(weight), wide_bias, stride, padding, dilation, /*transposed=*/false, none, groups);
  if (half) y = y.to(x.scalar_type());
  const auto last = at::MemoryFormat::ChannelsLast;
  const bool channels_last =
      x.dim() == 4 && (x.suggest_memory_format() == last || weight.suggest_memory_format() == last);
  return as_cuda(y.contiguous(channels_last ? last : at::MemoryFormat::Contiguous));
}

Tensor cudnn_convolution(
    const Tensor& x, const Tensor& weight, Integers padding, Integers stride, Integers dilation, c10::SymInt groups,
    bool, bool, bool) {
  return convolution_of_cudnn(x, weight, std::nullopt, stride, padding, dilation, std::move(groups));
}

Tensor conv_depthwise2d(
    const Tensor& x, const Tensor& weight, Integers, const OptionalTensor& bias, Integers stride, Integers padding,
    Integers dilation) {
  return convolution_of_cudnn(x, weight, bias, stride, padding, dilation, x.size(1));
}

Tensor convolution_overrideable(  // transposed ones
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Integers stride, Integers padding,
    Integers dilation, bool transposed, Integers output_padding, c10::SymInt groups) {
  return as_cuda(at::convolution_symint(
      as_cpu(x), as_cpu(weight), as_cpu(bias), stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& weight, at::OptionalSymIntArrayRef bias_sizes,
    Integers stride, Integers padding, Integers dilation, bool transposed, Integers output_padding, c10::SymInt groups,
    std::array<bool, 3> wanted) {
  auto [of_x, of_weight, of_bias] = at::convolution_backward_symint(
      as_cpu(gradient), as_cpu(x), as_cpu(weight), bias_sizes, stride, padding, dilation, transposed, output_padding,
      groups, wanted);
  return {as_cuda(of_x), as_cuda(of_weight), as_cuda(of_bias)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cudnn_batch_norm(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& mean,
    const OptionalTensor& variance, bool training, double momentum, double epsilon) {
  auto [y, saved_mean, saved_variance] = at::native_batch_norm(
      as_cpu(x), as_cpu(weight), as_cpu(bias), as_cpu(mean), as_cpu(variance), training, momentum, epsilon);
  return {as_cuda(y), as_cuda(saved_mean), as_cuda(saved_variance), as_cuda(at::empty({0}, at::kByte))};
}

int64_t written_out_attention(
    const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, double, bool, std::optional<double>, bool) {
  return 0;
}

Tensor& set_storage_and_shape(Tensor& result, at::Storage source, c10::SymInt offset, Integers size, Integers stride) {
  TORCH_CHECK(source.device().is_cuda(), "Expected a storage on cuda");
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(source);
  impl->set_storage_offset(offset.guard_int(__FILE__, __LINE__));
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  if (stride.size() == size.size())
    impl->set_sizes_and_strides(sizes, C10_AS_INTARRAYREF_SLOW(stride));
  else  // left out
    impl->set_sizes_contiguous(sizes);
  return result;
}

Tensor& set_storage(Tensor& result, at::Storage source) {
  const c10::SymInt count = static_cast<int64_t>(source.nbytes() / result.dtype().itemsize());
  return set_storage_and_shape(result, source, 0, {count}, {c10::SymInt(1)});
}

void record_stream(Tensor&, Stream) {}

}  // namespace

namespace at {  // where the macro looks for the registry
using EmulatedHooks = ::Hooks;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, EmulatedHooks)
}  // namespace at

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&borrow>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  // torch has implementations of these for every device, which would go before the fallback.
  for (const char* name : {"copy_", "resize_", "as_strided"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&borrow>());
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("cudnn_convolution", cudnn_convolution);
  library.impl("_conv_depthwise2d", conv_depthwise2d);
  library.impl("convolution_overrideable", convolution_overrideable);
  library.impl("convolution_backward", convolution_backward);
  library.impl("cudnn_batch_norm", cudnn_batch_norm);
  library.impl("_fused_sdp_choice", written_out_attention);
  library.impl("set_.source_Storage", set_storage);
  library.impl("set_.source_Storage_storage_offset", set_storage_and_shape);
  library.impl("record_stream", record_stream);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("install", [] {
    c10::impl::registerDeviceGuard(DeviceType::CUDA, &guard);
    c10::SetAllocator(DeviceType::CUDA, &allocator, /*priority=*/100);
    return at::globalContext().hasCUDA();
  });
  module.def("default_generator", &default_generator);
  module.def("allocated", [] { return allocated_bytes; });
}
